package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"varve/internal/objects/s3/s3test"
)

// TestScriptsInABucket runs testdata/s3/*.txtar beside a real S3 server.
func TestScriptsInABucket(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	bucket, locked := server.Bucket("varve", s3test.Plain), server.Bucket("locked", s3test.Locked)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/s3",
		RequireExplicitExec: true,
		Cmds:                commands,
		Setup: func(e *testscript.Env) error {
			for k, v := range map[string]string{
				"SERVER": "s3://" + server.Address, "BUCKET": bucket, "LOCKED": locked, "CA": server.CAFile, "ID": server.AccessKey,
				"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey, "HOME": e.WorkDir,
				"SECRETFILE": filepath.Join(e.WorkDir, "secret"), "CREDENTIALS": filepath.Join(e.WorkDir, "credentials"),
				"VARVE_DATA": filepath.Join(e.WorkDir, "d"), "GORACE": "atexit_sleep_ms=0",
			} {
				e.Setenv(k, v)
			}
			text := fmt.Sprintf("[varve]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKey, server.SecretKey)
			if err := os.WriteFile(filepath.Join(e.WorkDir, "credentials"), []byte(text), 0o600); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "secret"), []byte(server.SecretKey+"\n"), 0o600)
		},
	})
}
