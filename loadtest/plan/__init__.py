"""What is asked: a scenario, and the calls that are planned from it."""
