"""Sources of new manifests in a folder or bucket: plain audio, known corpora, manifests of other toolkits."""
