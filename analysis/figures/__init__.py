"""One file per figure: `points(...)` turns tables into plain data, which tests compare; `draw(ax, ...)` into ink."""
