"""Makes the site's pages: those written by hand in docs/, and those made from the code, the plugins and the results."""
