package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// results is all that was found, as results.json has it. A section that was not measured is absent.
type results struct {
	Runs     map[string]*measuring `json:"runs"`     // by section
	Failures map[string]string     `json:"failures"` // by section

	Peers   *peersFound    `json:"peers,omitempty"`
	Depth   []depthFound   `json:"depth,omitempty"`
	Pauses  []pausedVolume `json:"pauses,omitempty"`
	Written []writtenBy    `json:"written,omitempty"`
	Reclaim *reclaimFound  `json:"reclaim,omitempty"`
	Aged    *agedFound     `json:"aged,omitempty"`

	Techniques *techniquesFound `json:"techniques,omitempty"`
	Backups    *backupsFound    `json:"backups,omitempty"`
}

// measuring is one run of this program, which measured one or more sections.
type measuring struct {
	Began    time.Time `json:"began"`
	Seconds  float64   `json:"seconds"`
	Command  string    `json:"command"`
	Settings settings  `json:"settings"`
	Machine  machine   `json:"machine"`
}

// of is the run that measured a section; of one that nobody measured a run of nothing.
func (r *results) of(section string) *measuring {
	if m, ok := r.Runs[section]; ok {
		return m
	}
	return new(measuring)
}

func readResults(file string) (*results, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	found := new(results)
	if err := json.Unmarshal(p, found); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return found, nil
}

func (r *results) write(file string) error {
	p, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replace(file, append(p, '\n'))
}

// writeReport writes what people read.
func (r *results) writeReport(dir string) error {
	if err := replace(filepath.Join(dir, "results.svg"), []byte(r.chart())); err != nil {
		return err
	}
	return replace(filepath.Join(dir, "RESULTS.md"), []byte(r.markdown()))
}

// replace never leaves half a file where a whole one was.
func replace(file string, p []byte) error {
	if err := os.WriteFile(file+".new", p, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
