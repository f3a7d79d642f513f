"""Read and lay out MindSpore's protobuf files."""
