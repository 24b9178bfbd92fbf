"""SAE files as their publishers lay them out, and what the publishers' own code makes of them."""
