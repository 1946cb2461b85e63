// Package cli is the command line: the grammar of `varve`, a file per group of
// commands, and the rules of its terminal, which are these.
//
// Results go to stdout, as a table or, with -o json, as one JSON document; what
// is said on the way goes to stderr, and only where that is a terminal and
// --quiet is absent. An error is one line on stderr that begins with "varve:",
// followed by a hint where there is one, and its kind is the exit status
// (package contract). What cannot be undone is refused while something stands in
// the way; --force is the answer to a refusal, and no command asks anything.
//
// Every command but serve, demo, pool check --offline, and repo and backup with --url is a
// call of the daemon's API. File names are made absolute before they are sent.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"varve/internal/api/client"
	"varve/internal/contract"
	"varve/internal/daemon"
	"varve/internal/depot"
)

// grammar is the command line. Its doc comments are the help.
type grammar struct {
	Data   string `help:"Directory that holds the pool and the sockets." env:"VARVE_DATA" placeholder:"DIR" default:"${data}"`
	Socket string `help:"Socket of the API (default: api.sock in the data directory)." env:"VARVE_SOCKET" placeholder:"PATH"`
	Output string `help:"How results are printed: table or json." short:"o" enum:"table,json" default:"table" placeholder:"FORMAT"`
	Quiet  bool   `help:"No progress and no chatter; results are still printed."`
	Yes    bool   `help:"Answer yes to what asks first. Nothing asks at present: what is in the way is refused, and --force is the answer."`
	Force  bool   `help:"Do what is refused for safety: shrink a volume, replace a file, disconnect clients, adopt what looks like no raw image."`
	Detach bool   `help:"Do not wait for a long command; print its job's id."`

	Serve      serveCommand      `cmd:"" help:"Run the daemon: the pool, NBD and the API."`
	Status     statusCommand     `cmd:"" help:"Show everything at a glance."`
	Demo       demoCommand       `cmd:"" help:"Show the whole story on a scratch directory; needs no daemon."`
	Volume     volumeCommands    `cmd:"" help:"Virtual disks."`
	Snapshot   snapshotCommands  `cmd:"" help:"Points in time of volumes."`
	Bookmark   bookmarkCommands  `cmd:"" help:"Points in time that keep no data, only what is needed to tell what changed since."`
	Mirror     mirrorCommands    `cmd:"" help:"Files that are written in step with volumes, to be split off as full copies."`
	Pool       poolCommands      `cmd:"" help:"The store that holds volumes and snapshots."`
	Repo       repoCommands      `cmd:"" help:"Repositories: where backups live, in a directory or a bucket."`
	Backup     backupCommands    `cmd:"" help:"Independent copies of points in time, in repositories."`
	Job        jobCommands       `cmd:"" help:"Long work in the daemon."`
	Event      eventCommands     `cmd:"" help:"What the daemon has to tell."`
	Completion completionCommand `cmd:"" help:"Print a completion script for a shell."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
	Man        manCommand        `cmd:"" hidden:"" help:"Write the manual pages to a directory."`
	Complete   completeCommand   `cmd:"" hidden:"" name:"__complete" help:"Print completions of a command line."`
}

// terminal is where a command speaks and what it was told globally.
type terminal struct {
	*grammar
	ctx            context.Context // ends at the first SIGINT or SIGTERM; the second one ends the process
	stdout, stderr io.Writer
	client         *client.Client
	model          *kong.Application
	version        string
	chatty         bool // stderr is a terminal, and quiet was not asked for
	fancy          bool // stdout is a terminal
}

// Main runs one command line, without the program's name, and returns the exit status.
func Main(args []string, version string) int {
	err := run(args, version)
	if err == nil {
		return 0
	}
	told := describe(err)
	fmt.Fprintln(os.Stderr, "varve: "+oneLine(told.Message))
	if told.Hint != "" {
		fmt.Fprintln(os.Stderr, "hint: "+oneLine(told.Hint))
	}
	return told.Code.ExitCode()
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// exit carries the status of kong's own exits (--help) through the stack.
type exit int

func run(args []string, version string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			if status, ok := r.(exit); ok && status == 0 {
				return
			}
			panic(r)
		}
	}()
	g := new(grammar)
	parser, err := kong.New(g,
		kong.Name("varve"),
		kong.Description("Virtual disks with snapshots, served over NBD.\n\n"+
			"Sizes are bytes or have a suffix: 512M, 10G (powers of 1024). A snapshot is VOLUME@NAME, a bookmark VOLUME#NAME. "+
			"Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused (in use, protected, name taken), 5 damaged data found."),
		kong.Vars{"data": defaultData()},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, NoExpandSubcommands: true}),
		kong.TypeMapper(reflect.TypeFor[size](), kong.MapperFunc(decodeSize)),
		kong.Exit(func(status int) { panic(exit(status)) }),
	)
	if err != nil {
		return err
	}
	command, err := parser.Parse(inOrder(parser.Model, args))
	if err != nil {
		return usageError(err, command)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one ends what does not heed the first
	t := &terminal{
		grammar: g, ctx: ctx, stdout: os.Stdout, stderr: os.Stderr,
		model: parser.Model, version: version,
		chatty: !g.Quiet && term.IsTerminal(int(os.Stderr.Fd())),
		fancy:  term.IsTerminal(int(os.Stdout.Fd())),
	}
	if err := t.aim(); err != nil {
		return err
	}
	defer t.client.Close()
	return command.Run(t)
}

// startTime is how long a command waits for a daemon that was started just before it.
const startTime = time.Second

// aim makes the paths absolute and the client one of the daemon they name.
func (t *terminal) aim() (err error) {
	if t.Data, err = filepath.Abs(t.Data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if t.Socket == "" {
		t.Socket = daemon.APISocket(t.Data)
	}
	t.client = client.New(t.Socket, startTime)
	return nil
}

// defaultData is where data lies if nothing else was said.
func defaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/varve"
	}
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "varve-data"
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "varve")
}

// usageError is a command line that does not fit the grammar.
func usageError(err error, command *kong.Context) error {
	help := "varve --help"
	var parse *kong.ParseError
	if command == nil && errors.As(err, &parse) {
		command = parse.Context
	}
	if command != nil && command.Selected() != nil {
		help = command.Selected().FullPath() + " --help"
	}
	return contract.Errorf(contract.CodeUsage, "%s", err).WithHint("see %s", help)
}

// describe gives an error its code and hint.
func describe(err error) *contract.Error {
	switch {
	case errors.Is(err, client.ErrNoDaemon):
		return contract.Errorf(contract.CodeFailed, "%s", err).WithHint("start one: varve serve, with the same --data or VARVE_DATA")
	case errors.Is(err, context.Canceled):
		return contract.Errorf(contract.CodeFailed, "interrupted")
	}
	if told := depot.Explain(err); told != nil {
		return told
	}
	return daemon.Describe(err)
}

// chat says something that is no result, where somebody reads it.
func (t *terminal) chat(format string, args ...any) {
	if t.chatty {
		fmt.Fprintf(t.stderr, format+"\n", args...)
	}
}

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(t *terminal) error {
	return t.print(map[string]string{"version": t.version}, func(w *table) { w.row(t.version) })
}
