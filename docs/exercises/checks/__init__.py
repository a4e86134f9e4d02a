"""What a solution must do. Read a check when its message is not enough."""
