"""What SFT and DPO share, and TRL's trainer as a small model needs it."""
