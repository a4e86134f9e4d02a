"""A model on its way to the Hub and from it: card, checks, publishing."""
