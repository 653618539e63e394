"""What the catalog job is made of, from a row of a catalog to a video and a line of the gallery."""
