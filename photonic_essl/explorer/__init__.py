"""The explorer: a local page on which one chooses or paints a cell and sees its density of states.

One HTML page and one script (`page.html`, `page.js`), served to this machine alone by the standard library
(`server.py`). Predictions are made in the page's process (`session.py`); cells are drawn and solved in others
(`solver_process.py`), so that a prediction never waits for a solver.
"""
