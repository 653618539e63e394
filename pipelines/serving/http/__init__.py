"""HTTP requests and responses: bodies, fields of other servers' clients, keys, uploads, images by URL, errors."""
