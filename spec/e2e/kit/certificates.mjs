// Certificates for tests, made when they run and gone with their folder: an authority and what it
// signs, by the openssl command.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

function openssl(...args) {
  const result = spawnSync('openssl', args, { encoding: 'utf8' });
  if (result.status !== 0) throw new Error(`openssl ${args[0]}: ${result.stderr ?? result.error}`);
  return result.stdout;
}

export function makeAuthority() {
  const dir = mkdtempSync(path.join(tmpdir(), 'moongate-ca-'));
  const at = (name) => path.join(dir, name);
  openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
    '-subj', '/CN=test authority', '-keyout', at('ca.key'), '-out', at('ca.pem'));
  let serial = 0;
  return {
    dir, caFile: at('ca.pem'), ca: readFileSync(at('ca.pem')),
    // → {cert, key}: the texts of a new pair.
    issue({ names = 'DNS:localhost,IP:127.0.0.1', cn = 'gateway' } = {}) {
      const n = ++serial;
      openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', `/CN=${cn}`,
        '-keyout', at(`${n}.key`), '-out', at(`${n}.csr`));
      writeFileSync(at(`${n}.ext`), `subjectAltName=${names}\n`);
      openssl('x509', '-req', '-in', at(`${n}.csr`), '-CA', at('ca.pem'), '-CAkey', at('ca.key'),
        '-set_serial', String(100 + n), '-days', '2', '-extfile', at(`${n}.ext`), '-out', at(`${n}.pem`));
      return { cert: readFileSync(at(`${n}.pem`), 'utf8'), key: readFileSync(at(`${n}.key`), 'utf8') };
    },
    remove: () => rmSync(dir, { recursive: true, force: true }),
  };
}
