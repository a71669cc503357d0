"""Starting ranks, ending them together, and stopping when asked. Importing it starts no MPI."""
