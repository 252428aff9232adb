import tseslint from 'typescript-eslint'

export default tseslint.config(
  {
    basePath: new URL('..', import.meta.url).pathname,
    ignores: ['dist/**', 'build/**', 'prebuilds/**', '**/*.mjs', '**/*.mts'],
  },
  ...tseslint.configs.strictTypeChecked,
  {
    basePath: new URL('..', import.meta.url).pathname,
    files: ['**/*.ts'],
    languageOptions: {
      parserOptions: {
        project: ['test/tsconfig.json'],
        tsconfigRootDir: new URL('..', import.meta.url).pathname,
      },
    },
    rules: {
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/no-extraneous-class': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      '@typescript-eslint/no-unnecessary-condition': [
        'error',
        { allowConstantLoopConditions: true },
      ],
    },
  },
)
