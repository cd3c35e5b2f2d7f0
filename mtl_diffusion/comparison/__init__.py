"""Models that differ in how they were trained, held beside each other; trained where need be."""
