"""The larger commands of `cinemo`, one file each; cinemo.cli adds the small ones."""
