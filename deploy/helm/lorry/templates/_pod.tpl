{{- /* Parts of the pods that run servers: a Deployment's, and a RayService's. */ -}}
{{- define "lorry.mounts" -}}
- {name: model, mountPath: /model, readOnly: {{ not .Values.model.hub }}}
- {name: store, mountPath: /store}
- {name: cache, mountPath: /cache}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- if .Values.adminToken.existingSecret }}
- {name: admin-token, mountPath: /secrets/admin-token, readOnly: true}
{{- end }}
{{- end -}}

{{- define "lorry.volumes" -}}
- name: model
  {{- toYaml (.Values.model.volume | default (dict "emptyDir" dict)) | nindent 2 }}
- name: store
  {{- if .Values.store.url }}
  emptyDir: {sizeLimit: {{ .Values.store.cacheSize }}}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "lorry.storeClaim" . }}
  {{- end }}
- name: cache
  {{- toYaml (.Values.cache.volume | default (dict "emptyDir" (dict "sizeLimit" .Values.cache.sizeLimit))) | nindent 2 }}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
{{- with .Values.adminToken.existingSecret }}
- name: admin-token
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: {{ $.Values.adminToken.key }}, path: token}
{{- end }}
{{- end -}}

{{- define "lorry.modelArgument" -}}
{{- .Values.model.hub | default (printf "/model/%s" .Values.model.path | trimSuffix "/") -}}
{{- end -}}
