"""Pages for people: plain files that the browser fills from the server's own routes."""
