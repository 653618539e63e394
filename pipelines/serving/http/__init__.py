"""What the API and the page share: bodies, the spellings of other clients, keys, uploads, links, error responses."""
