"""The file of runs as a page and as plots: `localplug report RUNS --out DIR`.

lines      files of runs, read with care: whatever is wrong with them is said at once
panels     the runs of one task under one setting, by way of training; means over seeds and their spread
figures    what each plot shows, as numbers; drawing: the same by matplotlib, and as inline SVG
tables     the same numbers to read and to sort
page       one HTML file with all of it, which fetches nothing; page.css and page.js are put into it
command    what a user types
"""
