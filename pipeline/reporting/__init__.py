"""The report: run folders are read (`runs`), drawn (`figures`) and set as one self-contained HTML page (`page`)."""
