"""Execute a notebook in a Jupyter kernel, without its first cell of code, which installs: path, code of a last cell."""

import sys

import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells = [*notebook.cells[2:], nbformat.v4.new_code_cell(sys.argv[2])]
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
