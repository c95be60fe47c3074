"""The one endpoint of a cluster: it picks a replica for each call and passes the bytes on."""
