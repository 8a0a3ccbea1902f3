"""The figures, one a file: each as plain data for Plotly in the browser, with a sentence that reads it."""
