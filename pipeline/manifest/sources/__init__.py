"""Manifests out of what lies in a folder or bucket: plain audio, known corpora, other toolkits' manifests."""
