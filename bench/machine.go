package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
)

// machine is what was measured on. It names no host and no path.
type machine struct {
	Cores      int      `json:"cores"`
	CPU        string   `json:"cpu"`
	Memory     string   `json:"memory"`
	Kernel     string   `json:"kernel"`
	FileSystem string   `json:"file_system"`
	Load       string   `json:"load_before"`
	Programs   []string `json:"programs"` // with their versions
}

func describeMachine(ctx context.Context, s settings) (m machine, err error) {
	m.Cores = runtime.NumCPU()
	if m.CPU, err = field("/proc/cpuinfo", "model name"); err != nil {
		return m, err
	}
	if m.Memory, err = field("/proc/meminfo", "MemTotal"); err != nil {
		return m, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	m.Load, _, _ = strings.Cut(string(load), " ")
	first := func(name string, args ...string) string {
		out, failed := output(ctx, name, args...)
		if err == nil {
			err = failed
		}
		return strings.TrimSpace(firstLine(string(out)))
	}
	m.Kernel = first("uname", "-sr")
	m.FileSystem = first("findmnt", "--noheadings", "--output", "FSTYPE", "--target", s.dir)
	m.Programs = []string{
		"varve " + first(s.varve, "version"), first("qemu-nbd", "--version"), first("nbdkit", "--version"), first("fio", "--version"),
	}
	for _, r := range []recipe{resticRecipe, borgRecipe, kopiaRecipe} {
		if _, absent := exec.LookPath(r.program); absent == nil {
			m.Programs = append(m.Programs, named(r.program, first(r.program, r.version)))
		}
	}
	return m, err
}

// named is a version with the program's name before it, once.
func named(program, version string) string {
	return program + " " + strings.TrimPrefix(version, program+" ")
}

// busy tells whether the machine did other things when the run began.
func (m machine) busy() bool {
	load, err := strconv.ParseFloat(m.Load, 64)
	return err == nil && load > float64(m.Cores)/2
}

// field is the first value of a name in a file of lines "name: value".
func field(file, name string) (string, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for lines := bufio.NewScanner(bytes.NewReader(p)); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no %q", file, name)
}
