"""Where the matrix's manifest is kept, how the README's table is made of it, and what every way is put through."""
