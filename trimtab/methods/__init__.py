"""One file per paper. The folder is the room, the file name is the id, and the file is found by being there."""
