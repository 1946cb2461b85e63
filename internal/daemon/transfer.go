package daemon

import "varve/internal/contract"

func (d *Daemon) StartImport(r contract.Import) (contract.Job, error)     { return contract.Job{}, nil }
func (d *Daemon) StartExport(r contract.ExportFile) (contract.Job, error) { return contract.Job{}, nil }
