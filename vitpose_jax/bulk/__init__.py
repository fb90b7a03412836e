"""Many image files: inputs, results, and prediction over all of them."""
