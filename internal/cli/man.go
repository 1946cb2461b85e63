package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
)

type manCommand struct {
	Dir string `arg:"" help:"Directory to write to."`
}

// Run writes varve.1, and a page for each command such as varve-volume-create.1.
func (c manCommand) Run(t *terminal) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	pages := append([]*kong.Node{t.model.Node}, t.model.Leaves(true)...)
	for _, node := range pages {
		var page strings.Builder
		writePage(&page, node, t.version)
		file := filepath.Join(c.Dir, strings.ReplaceAll(node.FullPath(), " ", "-")+".1")
		if err := os.WriteFile(file, []byte(page.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// roff escapes text for man(7).
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func writePage(w io.Writer, node *kong.Node, version string) {
	name := node.FullPath()
	help := strings.TrimSuffix(node.Help, ".")
	if first, _, ok := strings.Cut(help, "\n"); ok {
		help = first
	}
	fmt.Fprintf(w, ".TH %s 1 \"\" \"varve %s\"\n", strings.ToUpper(strings.ReplaceAll(name, " ", "\\-")), roff(version))
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(strings.ReplaceAll(name, " ", "-")), roff(help))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n", roff(name))
	if node.Parent != nil {
		fmt.Fprintln(w, roff(strings.TrimSpace(strings.TrimPrefix(node.Summary(), node.Path()))))
	} else {
		fmt.Fprintln(w, `\fICOMMAND\fR ...`)
	}
	if node.Parent == nil {
		fmt.Fprintln(w, ".SH DESCRIPTION")
		for _, paragraph := range strings.Split(node.Help, "\n\n") {
			fmt.Fprintf(w, ".PP\n%s\n", roff(paragraph))
		}
		fmt.Fprintln(w, ".SH COMMANDS")
		for _, leaf := range node.Leaves(true) {
			fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(leaf.FullPath()), roff(leaf.Help))
		}
	}
	if len(node.Positional) > 0 {
		fmt.Fprintln(w, ".SH ARGUMENTS")
		for _, arg := range node.Positional {
			fmt.Fprintf(w, ".TP\n.I %s\n%s\n", roff(arg.Summary()), roff(arg.Help))
		}
	}
	fmt.Fprintln(w, ".SH OPTIONS")
	for _, group := range node.AllFlags(true) {
		for _, flag := range group {
			fmt.Fprintf(w, ".TP\n.B %s\n%s", roff(flag.Summary()), roff(flag.Help))
			for _, variable := range flag.Envs {
				fmt.Fprintf(w, " Environment: \\fB%s\\fR.", roff(variable))
			}
			fmt.Fprintln(w)
		}
	}
}
