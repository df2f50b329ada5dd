"""What it takes to run Narrowgate for others; no part of the wheel."""
