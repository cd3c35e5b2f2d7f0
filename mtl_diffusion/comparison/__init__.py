"""Models that differ in how they were trained, compared; and one model's methods of editing."""
