"""What the passes of pipelines share: `main` as a graph over time, stages, segments, and entries for each rank."""
