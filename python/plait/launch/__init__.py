"""Starting ranks on this machine. Importing it starts no MPI."""
