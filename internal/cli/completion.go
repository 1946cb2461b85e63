package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// completionTime is how long a completion may wait for the daemon.
const completionTime = time.Second

// scripts ask the program itself what could come next; where it knows nothing
// the shell offers file names.
var scripts = map[string]string{
	"bash": `_varve() {
	local IFS=$'\n' cur
	COMPREPLY=()
	# A colon or an equals sign breaks words in bash; the line up to the cursor is split at blanks instead.
	local -a words
	IFS=' ' read -r -a words <<<"${COMP_LINE:0:COMP_POINT}x"
	words[-1]=${words[-1]%x}
	cur=${words[-1]}
	COMPREPLY=($(varve __complete -- "${words[@]:1}" 2>/dev/null))
	[[ $cur == *[@:=]* ]] && COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*[:=]}"}"}")
}
complete -o bashdefault -o default -F _varve varve
`,
	"zsh": `#compdef varve
_varve() {
	local -a candidates
	candidates=("${(@f)$(varve __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	candidates=(${candidates:#})
	if (( ${#candidates} )); then compadd -- $candidates; else _files; fi
}
compdef _varve varve
`,
	"fish": `function __varve_complete
	set -l words (commandline -opc) (commandline -ct)
	varve __complete -- $words[2..-1] 2>/dev/null
end
complete -c varve -a '(__varve_complete)'
`,
}

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish. For bash: source <(varve completion bash)."`
}

// Run prints a script.
func (c completionCommand) Run(t *terminal) error {
	_, err := fmt.Fprint(t.stdout, scripts[c.Shell])
	return err
}

type completeCommand struct {
	Words []string `arg:"" optional:"" passthrough:""`
}

// Run prints what the last word could become, a candidate a line.
func (c completeCommand) Run(t *terminal) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		words = []string{""}
	}
	for _, candidate := range t.complete(words[:len(words)-1], words[len(words)-1]) {
		fmt.Fprintln(t.stdout, candidate)
	}
	return nil
}

// complete lists what current can become after the words before it, sorted.
func (t *terminal) complete(before []string, current string) []string {
	node := t.model.Node
	args := 0
	var pending *kong.Flag // a flag that waits for its value
	for _, word := range before {
		switch {
		case pending != nil:
			t.remember(pending.Name, word)
			pending = nil
		case strings.HasPrefix(word, "-"):
			name, value, given := strings.Cut(word, "=")
			if flag := findFlag(node, name); flag != nil && !flag.IsBool() {
				if given {
					t.remember(flag.Name, value)
				} else {
					pending = flag
				}
			}
		default:
			if child := findChild(node, word); child != nil {
				node, args = child, 0
			} else {
				args++
			}
		}
	}
	var all []string
	switch {
	case pending != nil:
		all = t.values(pending.Value, current)
	case strings.HasPrefix(current, "-"):
		for _, group := range node.AllFlags(true) {
			for _, flag := range group {
				all = append(all, "--"+flag.Name)
			}
		}
	case len(node.Children) > 0:
		for _, child := range node.Children {
			if !child.Hidden {
				all = append(all, child.Name)
			}
		}
	case len(node.Positional) > 0:
		arg := node.Positional[min(args, len(node.Positional)-1)]
		if args < len(node.Positional) || arg.IsCumulative() {
			all = t.values(arg, current)
		}
	}
	all = slices.DeleteFunc(all, func(s string) bool { return s == "" || !strings.HasPrefix(s, current) })
	slices.Sort(all)
	return slices.Compact(all)
}

// remember takes over which daemon the command line speaks of.
func (t *terminal) remember(flag, value string) {
	switch flag {
	case "data":
		t.Data, t.Socket = value, ""
	case "socket":
		t.Socket = value
	}
	_ = t.aim() // without a daemon there are fewer candidates
}

func findFlag(node *kong.Node, word string) *kong.Flag {
	for _, group := range node.AllFlags(false) {
		for _, flag := range group {
			if word == "--"+flag.Name || flag.Short != 0 && word == "-"+string(flag.Short) {
				return flag
			}
		}
	}
	return nil
}

func findChild(node *kong.Node, word string) *kong.Node {
	for _, child := range node.Children {
		if child.Name == word {
			return child
		}
	}
	return nil
}

// values are what a flag or an argument can be: the members of its enumeration,
// or what the daemon has of that kind.
func (t *terminal) values(v *kong.Value, current string) []string {
	if v.Enum != "" {
		return v.EnumSlice()
	}
	ctx, cancel := context.WithTimeout(t.ctx, completionTime)
	defer cancel()
	var out []string
	switch v.Name {
	case "volume", "volume[@snapshot]", "in-place":
		volumes, _ := t.client.Volumes(ctx)
		for _, volume := range volumes {
			out = append(out, volume.Name)
		}
	case "repo", "repository", "from to backup", "repository key":
		repos, _ := t.client.Repositories(ctx)
		for _, r := range repos {
			out = append(out, r.Name)
		}
	case "backup", "older backup", "newer backup", "since":
		backups, _ := t.client.Backups(ctx, "", "")
		for _, b := range backups {
			out = append(out, b.ID)
		}
	case "id":
		jobs, _ := t.client.Jobs(ctx)
		for _, job := range jobs {
			out = append(out, job.ID)
		}
	}
	switch v.Name {
	case "bookmark", "older":
		bookmarks, _ := t.client.Bookmarks(ctx, "")
		for _, b := range bookmarks {
			out = append(out, b.Ref())
		}
	}
	if v.Name == "snapshot" || v.Name == "from" || v.Name == "older" || v.Name == "volume[@snapshot]" && strings.Contains(current, "@") {
		snapshots, _ := t.client.Snapshots(ctx, "")
		for _, s := range snapshots {
			out = append(out, s.Ref())
		}
	}
	return out
}
