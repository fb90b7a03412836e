"""Classes and formats of other projects: transformers, and the tools that poses go to and come from."""
