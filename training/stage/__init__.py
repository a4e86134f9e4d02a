"""What every stage shares: its settings, its folder and its record."""
