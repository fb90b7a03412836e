"""Training a second stage for a person finder: `task = "second_stage"`."""
