package cli

import (
	"fmt"
	"net/url"
	"strings"

	"varve/internal/contract"
	"varve/internal/depot"
)

// access are the flags that say where the secrets lie that open a repository.
type access struct {
	PasswordFile      string   `help:"File whose first line is the passphrase." placeholder:"FILE"`
	IdentityFile      []string `help:"File with age identities, repeatable." placeholder:"FILE" sep:"none"`
	ExportFile        string   `help:"File with keys that were exported, instead of a passphrase or an identity." placeholder:"FILE"`
	S3Region          string   `name:"s3-region" help:"Region of the bucket." placeholder:"REGION"`
	S3AccessKey       string   `name:"s3-access-key" help:"Id of the access key. Without: as the environment says, AWS_ACCESS_KEY_ID and the like, or the usual files." placeholder:"ID"`
	S3SecretKeyFile   string   `name:"s3-secret-key-file" help:"File whose first line is that key's secret." placeholder:"FILE"`
	S3CredentialsFile string   `name:"s3-credentials-file" help:"File like ~/.aws/credentials." placeholder:"FILE"`
	S3Profile         string   `name:"s3-profile" help:"Which profile of that file." placeholder:"NAME"`
	S3CAFile          string   `name:"s3-ca-file" help:"Certificates, PEM, that are trusted beside the system's." placeholder:"FILE"`
	S3PlainHTTP       bool     `name:"s3-plain-http" help:"Without TLS: who listens sees what is stored and read, not what is in it."`
}

// of is the access to a URL, with all names absolute.
func (a access) of(location string) (out contract.RepositoryAccess, err error) {
	out.URL = location
	if location != "" && !strings.Contains(location, "://") {
		if out.URL, err = absolute(location); err != nil {
			return out, err
		}
	}
	s3 := contract.S3{Region: a.S3Region, AccessKey: a.S3AccessKey, Profile: a.S3Profile, PlainHTTP: a.S3PlainHTTP}
	for _, f := range []struct {
		to   *string
		from string
	}{
		{&out.PasswordFile, a.PasswordFile}, {&out.ExportFile, a.ExportFile},
		{&s3.SecretKeyFile, a.S3SecretKeyFile}, {&s3.CredentialsFile, a.S3CredentialsFile}, {&s3.CAFile, a.S3CAFile},
	} {
		if *f.to, err = absolute(f.from); err != nil {
			return out, err
		}
	}
	for _, file := range a.IdentityFile {
		abs, err := absolute(file)
		if err != nil {
			return out, err
		}
		out.IdentityFiles = append(out.IdentityFiles, abs)
	}
	if s3 != (contract.S3{}) {
		out.S3 = &s3
	}
	return out, nil
}

// given tells whether any of the flags is.
func (a access) given() bool {
	return a.PasswordFile != "" || len(a.IdentityFile) > 0 || a.ExportFile != "" || a.S3Region != "" || a.S3AccessKey != "" ||
		a.S3SecretKeyFile != "" || a.S3CredentialsFile != "" || a.S3Profile != "" || a.S3CAFile != "" || a.S3PlainHTTP
}

// place are the flags that have a command work on a repository without a daemon.
type place struct {
	URL    string `help:"Work on the repository at this URL (/PATH, file:///PATH, s3://HOST/BUCKET/PREFIX) without a daemon." placeholder:"URL"`
	Access access `embed:""`
}

// here tells that no daemon is asked.
func (p place) here() bool { return p.URL != "" }

// named takes the repository's name off the arguments, where a daemon is asked, and wants so many more of them (-1: any number).
func (p place) named(args []string, more int, what string) (name string, rest []string, err error) {
	if !p.here() {
		if p.Access.given() {
			return "", nil, contract.Errorf(contract.CodeUsage, "a repository that the daemon knows is opened with what it was added with").
				WithHint("leave the flags out, or work on it without the daemon: --url URL")
		}
		if len(args) == 0 {
			return "", nil, contract.Errorf(contract.CodeUsage, "no repository is named").WithHint("give the name of one (varve repo list), or --url URL to work without a daemon")
		}
		name, args = args[0], args[1:]
	}
	if more >= 0 && len(args) != more {
		return "", nil, contract.Errorf(contract.CodeUsage, "%d arguments in place of %s", len(args), what).
			WithHint("with --url URL no name is given")
	}
	return name, args, nil
}

// open opens the repository at the URL. Limits are in bytes a second; 0: none.
func (p place) open(t *terminal, upload, download int64) (*depot.Depot, error) {
	return openAt(t, p.URL, p.Access, upload, download)
}

// accessHere is the access of a command that works without a daemon.
func accessHere(t *terminal, location string, flags access) (contract.RepositoryAccess, error) {
	if t.Detach {
		return contract.RepositoryAccess{}, contract.Errorf(contract.CodeUsage, "--detach needs a daemon, and with --url there is none")
	}
	return flags.of(location)
}

func openAt(t *terminal, location string, flags access, upload, download int64) (*depot.Depot, error) {
	a, err := accessHere(t, location, flags)
	if err != nil {
		return nil, err
	}
	return depot.Open(t.ctx, a, depot.Options{Program: "varve " + t.version, UploadLimit: upload, DownloadLimit: download})
}

// with opens the repository at the URL, and closes it when do returns.
func (p place) with(t *terminal, upload, download int64, do func(d *depot.Depot) error) error {
	d, err := p.open(t, upload, download)
	if err != nil {
		return err
	}
	err = do(d)
	if closed := d.Close(); err == nil && closed != nil {
		err = fmt.Errorf("close %s: %w", d.Name(), closed)
	}
	return err
}

// sourceName makes what is backed up absolute: a file's name, or the socket in an NBD URI.
func sourceName(s string) (string, error) {
	if !strings.Contains(s, "://") {
		return absolute(s)
	}
	u, err := url.Parse(s)
	if err != nil {
		return s, nil // who opens it says what is wrong
	}
	q := u.Query()
	if socket := q.Get("socket"); socket != "" {
		if socket, err = absolute(socket); err != nil {
			return "", err
		}
		q.Set("socket", socket)
		u.RawQuery = strings.ReplaceAll(q.Encode(), "%2F", "/") // as people write it
		return u.String(), nil
	}
	return s, nil
}
