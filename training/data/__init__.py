"""Training data: every form that people bring, checked before anything is trained."""
