"""What is checked of the manifests, one kind of rule a file. A check gives the faults that it finds, as sentences."""
