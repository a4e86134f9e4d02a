"""One way to solve each exercise. Try your own first."""
