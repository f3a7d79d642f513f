"""Say where bytes lie: folders, URLs, object stores; open, read, stamp and name files safely."""
