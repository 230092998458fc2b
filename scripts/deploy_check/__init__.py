"""`make deploy-check`: the files of docs/deploy, run as their page says."""
