"""The larger commands of `cinemo`, one file each; cinemo.cli has the small ones and puts them together."""
