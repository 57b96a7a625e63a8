"""Read and write bytes: URIs, retries, object stores and local disk. Imports only the pipeline's errors."""
