"""Downloads of connectomes from Dataverse servers, resumable at any byte."""
