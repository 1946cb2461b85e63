package cli

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// inOrder puts the flags of a command before its other arguments, as they may stand anywhere: the parser takes those that a list of arguments
// is interrupted by for the end of it. What it does not understand it leaves as it is, for the parser to refuse.
func inOrder(app *kong.Application, args []string) []string {
	node := app.Node
	var flags, words []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return slices.Concat(flags, words, args[i:])
		case len(arg) > 1 && arg[0] == '-':
			flag := flagOf(node, arg)
			if flag == nil {
				return args
			}
			flags = append(flags, arg)
			if takesNext(flag, arg) && i+1 < len(args) {
				i++
				flags = append(flags, args[i])
			}
		default:
			if child := childOf(node, arg); child != nil && len(words) == 0 {
				node = child
				flags = append(flags, arg)
				continue
			}
			for _, p := range node.Positional {
				if p.Passthrough {
					return args
				}
			}
			words = append(words, arg)
		}
	}
	return append(flags, words...)
}

func childOf(node *kong.Node, name string) *kong.Node {
	for _, c := range node.Children {
		if c.Name == name || slices.Contains(c.Aliases, name) {
			return c
		}
	}
	return nil
}

// flagOf is the flag of a command, or one above it, that an argument names.
func flagOf(node *kong.Node, arg string) *kong.Flag {
	name, _, _ := strings.Cut(arg, "=")
	for _, group := range node.AllFlags(false) {
		for _, f := range group {
			if name == "--"+f.Name || f.Short != 0 && strings.HasPrefix(arg, "-"+string(f.Short)) {
				return f
			}
		}
	}
	return nil
}

// takesNext tells whether a flag's value is the next argument.
func takesNext(f *kong.Flag, arg string) bool {
	short := !strings.HasPrefix(arg, "--")
	return !f.IsBool() && !f.IsCounter() && !strings.Contains(arg, "=") && (!short || len(arg) == 2)
}
