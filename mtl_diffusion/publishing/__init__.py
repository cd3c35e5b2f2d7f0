"""A trained model as a folder with a card, and that folder on the Hub."""
