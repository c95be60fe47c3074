"""The servers under test, where the tool starts them itself."""
