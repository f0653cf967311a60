"""`make export`: nbs/ -> wsss_nb/. One notebook after the other, so that nbdev writes the modules and nothing beside them."""
from nbdev.doclinks import nbglob
from nbdev.export import nb_export

for notebook in nbglob(as_path=True).sorted('name'): nb_export(notebook)
